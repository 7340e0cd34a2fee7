"""Kernels, one folder an operator: reference.py is the specification, triton*.py the GPU code. stepstack.ops calls
them."""
