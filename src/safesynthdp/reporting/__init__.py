"""Floor 4: collect the stages of a run and draw the one page that states them."""
