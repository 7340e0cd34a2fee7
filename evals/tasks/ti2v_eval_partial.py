"""The items of Step-Video-TI2V-Eval whose pictures are there; comparable with nothing published."""

from recipes.stepvideo.evaluation.benchmarks import step_video

TASK = step_video("there", "ti2v_eval_partial", "those items of Step-Video-TI2V-Eval whose pictures are there")
