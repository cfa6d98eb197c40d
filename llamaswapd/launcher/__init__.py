"""The half that runs as root: it makes models into units for the other half, which may ask for that and nothing else.

Read it to know what `llamaswapd.service` can do at most. Whoever calls names a model by its id, and a port that it may
have; what is run, as whom and with what comes from the configuration, if nobody but root can write that.

    service     the bus: who calls, which methods there are, how an error is told
    orders      what each method does
    guard       may these files be believed?
    secrets     what only root may read: the models' environments, the key of the fingerprints

`systemd.delegation` has the interface, and the other half's end of it. Nothing of HTTP is imported here.
"""
