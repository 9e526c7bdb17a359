"""Says in a picture, and in its file, that it was made by a model; off unless asked for.

- ``watermark``: 48 bits in the pixels; ``metadata``: IPTC's digital source type, as XMP in the file
- ``credentials``: C2PA content credentials, signed with the user's certificate
- ``mark``: what a file gets of these

Imports numpy and Pillow only; c2pa-python when a picture is signed.
"""
