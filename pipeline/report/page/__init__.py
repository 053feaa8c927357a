"""The report as one HTML file that asks the network for nothing: reports/<profile>/index.html."""
