"""Reading what strangers made: their checkpoints without trust, their pictures as the network knows digits."""
