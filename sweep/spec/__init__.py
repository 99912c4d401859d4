"""What a sweep file says, as types: dimensions, space, sampler, pruner, stop rules."""
