"""The command line for assistants: tools of the Model Context Protocol, and a skill that explains it."""
