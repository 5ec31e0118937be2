// nanobind.cc - nanobind's own sources, from its package on PyPI.
#include "nb_combined.cpp"
