"""VBench-I2V's 1,118 prompts, five clips each; `stepstack vbench` lets VBench score them."""

from recipes.stepvideo.evaluation.benchmarks import vbench_i2v

TASK = vbench_i2v("vbench_i2v", "VBench-I2V, 1118 prompts to five clips each; scored by `stepstack vbench`")
