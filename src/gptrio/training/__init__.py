"""Fine-tuning: `Trainer`, its arguments, callbacks and collators, and checkpoints that survive a kill."""
