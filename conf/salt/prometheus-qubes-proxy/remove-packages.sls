# In a template: removes our packages. Those of the distribution stay, since others may need them.
prometheus-qubes-proxy-remove-packages:
  pkg.{{ 'purged' if grains['os_family'] == 'Debian' else 'removed' }}:
    - pkgs:
      - prometheus-qubes-proxy-monitor
      - prometheus-qubes-proxy
      - prometheus-qubes-proxy-service
