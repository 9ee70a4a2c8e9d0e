"""Cloud-free composites of many acquisitions, computed by Dask on the tile grid."""
