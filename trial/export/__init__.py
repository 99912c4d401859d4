"""Exports of trained trials: adapter or merged model, each loaded again and measured."""
