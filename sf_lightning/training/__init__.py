"""The roof: LightningModule, data module, callbacks. Everything below is plain torch."""
