"""Documents from files, as bytes; the embedded corpus; the split into train and val."""

from pgolf.data.embedded import embedded_documents, embedded_name, embedded_split
from pgolf.data.files import Source, documents, source
from pgolf.data.near_duplicates import unlike_others
from pgolf.data.split import in_val

__all__ = [
    "Source",
    "documents",
    "embedded_documents",
    "embedded_name",
    "embedded_split",
    "in_val",
    "source",
    "unlike_others",
]
