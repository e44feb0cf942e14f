"""The networks of maskline: mask plans, masked autoencoder, training, export, bundles and backends."""
