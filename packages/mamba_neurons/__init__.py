"""Which neurons of a Mamba matter, to what, and how few of them are enough."""
