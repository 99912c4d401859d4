"""What a trial minimises, and what unlearning is judged by.

names      every objective and metric by name, with its arguments (torch-free)
outside    `package.module:function`, found without importing it (torch-free)
losses     the objectives: a function (model, batch, **arguments) -> loss each
sides      a batch by what its rows are for, and the model with its reference
sets       forget and retain rows as tokens, paired by seed and epoch
trainer    the trainer that trains with an objective
examine    the model on the forget and retain sets: what metrics are taken from
figures    the metrics: from numbers to a number
"""
