"""XMP that says what a picture is: IPTC's ``DigitalSourceType`` (IPTC Photo Metadata Standard 2023.1)."""

from __future__ import annotations

from typing import Any

from PIL import PngImagePlugin

from koala_bundle import __version__
from koala_bundle.errors import ArgumentError

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""Made by a model that was trained on sampled content: a term of IPTC's news codes."""
TOOL = f"koala-trt {__version__}"
FORMATS = ("PNG", "JPEG", "WEBP")
"""Where Pillow writes XMP, by its names."""
_PNG_KEY = "XML:com.adobe.xmp"
# The id is the constant of the XMP specification, part 1, section 7.3.2.
_PACKET = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/">
   <Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>{TOOL}</xmp:CreatorTool>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def check_format(format: str, what: str = "format") -> None:
    """Raise ArgumentError unless marks can be written into files of this format."""
    if format not in FORMATS:
        raise ArgumentError(
            what, expected="PNG, JPEG or WebP for a marked picture", found=format, fix="write one of these"
        )


def metadata_options(format: str, text: PngImagePlugin.PngInfo | None) -> dict[str, Any]:
    """Return what makes Pillow's ``save`` write the XMP; for PNG it is added to ``text``. Raises ArgumentError."""
    check_format(format)
    if text is None:
        return {"xmp": _PACKET.encode()}
    text.add_itxt(_PNG_KEY, _PACKET)
    return {}
