"""Playroom: a MuJoCo room in which every action can be played from one state, so that success needs no judge."""
