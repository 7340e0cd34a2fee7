# A package, or pytest would put this folder on sys.path for its conftest.py, and tests/vllm would pass for vLLM.
