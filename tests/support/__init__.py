"""What more than one test module needs: tests import from here and never from each other."""
