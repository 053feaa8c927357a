"""Downloads: resumed, verified before use, from the first mirror that has the file; and unpacking of archives."""
