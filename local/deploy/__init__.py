"""Deployment: a trained model as ONNX graphs that other programs run."""
