"""The canary: it does what a browser and a backend do, through the public URL, and says what is broken.

stages       what can fail, in which order; the failure itself
connection   name look-up, TCP, TLS and upgrade, each of which can fail by itself
check        one check, from the look-up to the result
report       one line for a check, for people and Nagios
metrics      the checks so far, for Prometheus
service      checks again and again
"""
