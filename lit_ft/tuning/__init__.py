"""The search of `lit-ft tune`: its space, its study of Optuna, what ends trials early, and the table of trials."""
