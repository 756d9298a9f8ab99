"""`make bench`: this project and its peers under the same load, side by side in one run."""
