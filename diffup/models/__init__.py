"""The method: BAFT (prior maps), UAPF (fusion), UQDD (diffusion decoder), and the network that joins them."""
