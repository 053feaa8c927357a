"""`fcn init`: a profile planned from a folder's fingerprint and the machine, with the reason of every choice."""
