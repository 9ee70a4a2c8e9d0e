"""What `benchmarks.service` measures, with HAProxy in place of Ray Serve's own proxy.

Run as ``python -m benchmarks.service_haproxy [--full]``.
"""

import os


def main() -> None:
    """Measure and publish."""
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"  # before Ray Serve is imported
    from benchmarks import service

    service.main("service_haproxy")


if __name__ == "__main__":
    main()
