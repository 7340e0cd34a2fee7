"""`stepstack sim SIMULATION`: one file a simulation, whose stem is its name; they hold what a planner's file does
(stepstack.planning.commands)."""
