"""Step-Video-TI2V-Eval: all 298 first frames and prompts, whose clips are judged by `stepstack votes`."""

from recipes.stepvideo.evaluation.benchmarks import step_video

TASK = step_video("all", "ti2v_eval", "Step-Video-TI2V-Eval, 298 pictures to clips; judged by `stepstack votes`")
