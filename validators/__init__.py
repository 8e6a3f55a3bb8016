"""Tolerances, comparisons and parity levels: does an artifact compute what the reference computes?"""
