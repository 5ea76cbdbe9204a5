"""What would make a run, or the next one, go better: rules with their sources, and what they say of one run.

codes   a piece of advice as data: its code and the values of its sentences
facts   what is known of a run, before its training or after it
rules   the table: what each code is about, when it is given, and in which words
checks  whether a rule of the table holds, in the table's order

docs/advice.md is made of the table.
"""
