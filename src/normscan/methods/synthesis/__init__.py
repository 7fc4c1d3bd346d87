"""Systems that learn from artificial anomalies, planted by ``normscan.synthesis``."""
