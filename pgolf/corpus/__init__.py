"""Documents from files, as bytes; the embedded corpus; the split into train and val."""

from pgolf.corpus.embedded import embedded_documents, embedded_name
from pgolf.corpus.files import Source, documents, source
from pgolf.corpus.split import in_val

__all__ = ["Source", "documents", "embedded_documents", "embedded_name", "in_val", "source"]
