"""`fcn doctor`: what a run needs of its surroundings, found out before it."""
