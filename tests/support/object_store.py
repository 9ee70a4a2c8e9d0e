"""The S3 server of the tests, as they see it."""

from dataclasses import dataclass

from storage.location import Location, StorageOptions


@dataclass(frozen=True)
class MotoS3:
    """A running S3 server with one empty bucket."""

    options: StorageOptions
    bucket: str

    def uri(self, *parts: str) -> str:
        return "/".join([f"s3://{self.bucket}", *parts])

    def location(self, *parts: str) -> Location:
        return Location(self.uri(*parts), self.options)
