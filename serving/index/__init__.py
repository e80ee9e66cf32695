"""The item index: exact and FAISS search behind one protocol, built, tuned against exact search, and refused below its floor."""

import os
import sys

if sys.platform == "darwin":
    # torch and faiss each bring an OpenMP; loaded together on macOS the second one aborts the process unless this is set. Searches
    # here run on one thread, so the two never compete. Set before faiss loads, which is why it stands in the package's first file.
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
