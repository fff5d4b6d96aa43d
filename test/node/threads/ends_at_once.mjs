// A worker's program that has nothing to do.
