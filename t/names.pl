# What the files names-*.t share: a DNS server, backends on one port of several addresses, and a node that
# looks names up there.

use strict;
use warnings;

use RegistryTest;

our $dns = RegistryTest->dns;
our $port = free_port();
# Backends at 127.0.0.N, all on that port, by N; the name is the address.
our %backend;

sub backends { $backend{$_} ||= RegistryTest->backend(host => "127.0.0.$_", port => $port) for @_; return }

# A node with the service app, and more with spaces. settings: directives of the registry's block; resolver:
# that line, or undef. Everything else as for RegistryTest->nginx.
sub node {
    my (%opt) = @_;
    my $resolver = exists $opt{resolver} ? delete $opt{resolver} : resolver_line();
    my $settings = delete $opt{settings} || '';
    my $balance = delete $opt{balance} || 'round_robin';
    my $upstreams = join "\n", map { "upstream $_ { registry main; registry_balance $balance; }" }
        'app', @{ delete $opt{spaces} || [] };
    return RegistryTest->nginx(
        workers => 2,
        http => ($resolver || '') . "
            registry main 1m { $settings }
            $upstreams
            proxy_connect_timeout 2s;\n" . (delete $opt{http} || ''),
        server => 'location /upstream/ { registry_api main; add_header X-Worker $pid always; }
            location / { proxy_pass http://app; add_header X-Upstream $upstream_addr always; }',
        %opt,
    );
}
sub resolver_line { return 'resolver ' . $dns->address . ' ipv6=off; resolver_timeout ' . (1 * time_scale()) . "s;\n" }

# A call about a name or an address on the port of the backends, which must succeed; returns its data.
sub change {
    my ($node, $endpoint, $host, %fields) = @_;
    my $response = api($node, $endpoint, { ns => 'app', host => $host, port => $port, %fields });
    die "$endpoint $host: $response->{status} " . ($response->{error} || $response->{body}) . "\n"
        unless $response->{status} == 200;
    return $response->{json}{data};
}

# The addresses of a name in status: the last numbers of 127.0.0.N, in order, as text.
sub addresses {
    my ($node, $name) = @_;
    my @of = grep { defined $_->{name} && (!$name || $_->{name} eq "$name:$port") } @{ status($node, 'app')->{data} };
    return join ' ', sort { $a <=> $b } map { $_->{host} =~ /(\d+)$/ } @of;
}

# Waits until those are the addresses. One test.
sub resolves_to {
    my ($node, $name, $expected, $what, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $is;
    my $ok = wait_until(sub { $is = addresses($node, $name); $is eq $expected }, $opt{timeout} || 10 * time_scale());
    return ok($ok, $what) || diag("addresses: \"$is\", not \"$expected\"");
}

# Who answers a number of requests: the last numbers of the addresses, or a status.
sub answers {
    my ($node, $count) = @_;
    my %by = map {
        my ($n) = ($_->{headers}{'x-backend'} || '') =~ /^127\.0\.0\.(\d+):/;
        ($_->{status} == 200 ? $n : $_->{status}) => 1;
    } map { $node->get('/') } 1 .. $count || 12;
    return join ' ', sort { $a <=> $b } keys %by;
}

# A server as status has it.
sub server {
    my ($node, $host) = @_;
    return servers($node, 'app')->{"$host:$port"};
}

1;
