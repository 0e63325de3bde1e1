// Places in the regions Step and Stats, as in program.rs.

#define STEP_LR 0
#define STEP_BIAS_CORRECTION_1 1
#define STEP_BIAS_CORRECTION_2 2
#define STEP_VALID_ROWS 3
#define STEP_LOSS_SCALE 4
#define STEP_MAX_NORM 5
#define STEP_ACCUMULATE 6
#define STEP_FIRST 7

#define STATS_LOSS 0
#define STATS_GRAD_NORM 1
#define STATS_CLIP 2
