"""Training with Lightning: modules, data module, callbacks, loggers. The packages below use plain torch."""
