"""Every published method, one package per family, one file per mechanism."""
