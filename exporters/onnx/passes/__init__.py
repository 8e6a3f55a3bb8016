"""What is changed in a finished graph. Each pass says what it keeps."""
