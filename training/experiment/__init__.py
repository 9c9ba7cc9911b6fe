"""The experiment: what does each part of bootstrapping give, and is it more than the spread over seeds?"""
