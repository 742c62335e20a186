"""An adapter for the Wyoming protocol, which Home Assistant's voice assistants use."""
