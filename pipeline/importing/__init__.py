"""`fcn import`: exports of annotation tools and folders of masks become the own-data folder of docs/own-data.md."""
