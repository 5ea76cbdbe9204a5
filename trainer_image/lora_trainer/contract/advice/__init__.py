"""What would make a run, or the next one, go better: rules with their sources, and what they say of one run.

codes         a piece of advice as data: its code and the values of its sentences
facts         what is known of a run, before its training or after it
rule          what a rule is made of
adapter       rank, alpha, layers, serving
training      dropout, epochs, batch, learning rate
quantization  whether the base needs it, and whether it would fit with it
data          rows, and what the adapter leaves alone
end           where the loss was going, and how right the plan was
rules         all of them together: `before` and `after` a training, and the sentences of what they say

docs/advice.md is made of these rules.
"""
