"""Find how to split scarce target data between pretraining and post-training, so that it survives fine-tuning."""
