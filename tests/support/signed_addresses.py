"""Addresses of the file https://h/a.tif under every kind of signature; HUSH is the secret."""

SIGNED = [
    "https://h/a.tif?sv=2021-06-08&ss=b&se=2024-01-01T00%3A00%3A00Z&sp=r&sr=c&sig=HUSH%2B1%3D",
    "https://h/a.tif?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=HUSH&X-Amz-Signature=HUSH",
    "https://h/a.tif?x-amz-security-token=HUSH&x-amz-signature=HUSH&X-Amz-Expires=60",
    "https://h/a.tif?AWSAccessKeyId=HUSH&Signature=HUSH%3D&Expires=1",
    "https://h/a.tif?GoogleAccessId=HUSH&Expires=1&Signature=HUSH",
    "https://h/a.tif?X-Goog-Signature=HUSH&X-Goog-Date=20240101",
    "https://h/a.tif?Policy=HUSH&Signature=HUSH&Key-Pair-Id=HUSH",
    "https://h/a.tif?token=HUSH",
    "https://h/a.tif?access_token=HUSH",
    "https://h/a.tif?TOKEN=HUSH",
    "https://h/a.tif?api_key=HUSH",
    "https://h/a.tif?subscription-key=HUSH",
    "https://h/a.tif?key=HUSH",
    "https://h/a.tif?password=HUSH#token=HUSH",
    "https://h/a.tif?md5=HUSH&expires=1&secret=HUSH",
    "https://me:HUSH@h/a.tif",
    "https://HUSH@h/a.tif?%73ig=HUSH",
]
