"""What paired runs show, and what they cannot: verdicts with their errors.

Accuracies are given as fractions. Everything that is a difference, a scatter or an error comes
back in percentage points. Two kinds of chance are kept apart: an interval over seeds is about
training again on the same images; a sampling error is about other validation images.
"""
