"""Power laws and transfer statistics over records; numpy and scipy only."""
